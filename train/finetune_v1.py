"""Fine-tune all parameters of NULA v0 into v1.

accelerate launch train/finetune_v1.py --v0 runs/v0 --output_dir runs/v1
"""

from nula.records.weights import load_model
from nula.train.launch import build_parser, prepare, run
from nula.train.recipe import V1


def main() -> None:
    parser = build_parser("Fine-tune all parameters of NULA v0 into v1.")
    parser.add_argument(
        "--v0", default="MamaPearl/nula-cifar10-robust-v0", help="folder or Hub id of the weights to start from"
    )
    arguments = parser.parse_args()
    accelerator = prepare(arguments)
    try:
        model = load_model(arguments.v0)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: --v0 {arguments.v0}: {error}") from error
    run(model, V1, arguments, accelerator, arguments.v0)


if __name__ == "__main__":
    main()
