"""Loads a student from its file alone, recommends, and scores a batch of histories.

python examples/serve.py
"""

from first_run import RUN_DIR
from first_run import main as first_run

from recbole_adarec import load_student


def main() -> None:
    first_run()  # trains nothing if the run is there
    student = load_student(RUN_DIR)  # or the path of a copied student.pth; device="cuda" for a GPU

    print("after 50, 172, 181:")
    for item, score in student.recommend(["50", "172", "181"], k=5):
        print(f"  item {item:5} {score:.2f}")

    scores = student.scores([["50", "172"], ["181"]])  # [2, items]
    best = scores.argmax(1)
    print("best of two histories:", [student.item_tokens[i] for i in best.tolist()])


if __name__ == "__main__":
    main()
