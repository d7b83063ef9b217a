"""``python run_adarec.py --dataset=ml-1m --config_files=adarec.yaml``; see README.md."""

import sys

from recbole_adarec.cli import main

if __name__ == "__main__":
    sys.exit(main())
