"""Train NULA v0 from scratch.

accelerate launch train/train_v0.py --output_dir runs/v0
"""

from nula.configuration_nula import NulaConfig
from nula.modeling_nula import NulaForImageClassification
from nula.runtime.arguments import assigned
from nula.train.launch import build_parser, prepare, run
from nula.train.loop import ARCHITECTURE
from nula.train.recipe import V0


def main() -> None:
    parser = build_parser("Train NULA v0 from scratch.")
    parser.add_argument(
        "--config", nargs="*", default=[], metavar="FIELD=VALUE", help=f"changes of {', '.join(ARCHITECTURE)}"
    )
    arguments = parser.parse_args()
    accelerator = prepare(arguments)
    try:
        config = NulaConfig(**assigned(arguments.config, ARCHITECTURE, "--config"))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    run(NulaForImageClassification(config), V0, arguments, accelerator)


if __name__ == "__main__":
    main()
