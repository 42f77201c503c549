"""Classify images with a release, as a user of the Hub would.

python -m nula.classify --model build/nula-cifar10-robust-v1 examples/cat.png
"""

import argparse

from transformers import pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify images with a release of NULA.")
    parser.add_argument("--model", required=True, help="Hub id, or folder of an assembled release")
    parser.add_argument("images", nargs="+", help="paths or URLs")
    arguments = parser.parse_args()
    classifier = pipeline("image-classification", model=arguments.model, trust_remote_code=True)
    try:
        for image, answers in zip(arguments.images, classifier(arguments.images)):
            print(image)
            for answer in answers:
                print(f"  {answer['label']:<12} {answer['score']:.3f}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
