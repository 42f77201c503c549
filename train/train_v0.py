"""Train NULA v0 from scratch.

accelerate launch train/train_v0.py --output_dir runs/v0
"""

from nula.configuration_nula import NulaConfig
from nula.modeling_nula import NulaForImageClassification
from nula.train.launch import build_parser, prepare, run
from nula.train.recipe import V0


def main() -> None:
    arguments = build_parser("Train NULA v0 from scratch.").parse_args()
    accelerator = prepare(arguments.seed)
    run(NulaForImageClassification(NulaConfig()), V0, arguments, accelerator)


if __name__ == "__main__":
    main()
