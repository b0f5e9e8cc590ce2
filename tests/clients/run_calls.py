"""Runs the calls of the Python clients: `python run_calls.py URL PICTURE`, a PNG in base64. Prints one line of JSON for each call."""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm would fetch a list of prices when it is imported


def main() -> None:
    import langchain_calls
    import litellm_calls
    import openai_calls

    for module in (openai_calls, litellm_calls, langchain_calls):
        module.run(sys.argv[1])


if __name__ == "__main__":
    main()
