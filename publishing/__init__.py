"""A release on its way to the Hub: checked, assembled, pushed, exported."""
