"""The Space: the app of `hf-it3 app`, with the model that IT3_MODEL names and test images of the data set IT3_DATASET.

Without IT3_MODEL it trains the tutorial's network on scikit-learn's digits at the first start, in under a minute,
and keeps it. Locally: `python app.py`, then open the printed address.
"""

import os
import sys

from hf_it3.app import launch


if __name__ == "__main__":
    try:
        launch(os.environ.get("IT3_MODEL"), dataset=os.environ.get("IT3_DATASET"))
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"app.py: {error}")
