"""``python run_adarec.py --dataset=ml-1m --config_files=adarec.yaml``; see README.md."""

from recbole_adarec.cli import entry

if __name__ == "__main__":
    entry()
