"""The Space: the app of `hf-it3 app`, with the model that the variable IT3_MODEL names.

Without the variable it trains the tutorial's network on scikit-learn's digits at the first start, in under a minute,
and keeps it. Locally: `python app.py`, then open the printed address.
"""

import os
import sys

from hf_it3.app import launch


if __name__ == "__main__":
    try:
        launch(os.environ.get("IT3_MODEL"))
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"app.py: {error}")
