"""One addition on a GPU, in a process of its own: `python -m millrace.gpu_trial N`, for `cuda.tried()`."""

import sys

import numpy as np

from millrace.convert.graph import Graph, Inline
from millrace.convert.runtime import NoCuda, said, session


def main(at: int) -> int:
    graph = Graph("trial", Inline())
    graph.node("Add", *2 * [graph.input("x", np.float32, [1])], named=("y",))
    graph.output("y", np.float32, [1])
    try:
        made = session(graph.model().SerializeToString(), gpu=at)
        (found,) = made.run(["y"], {"x": np.ones(1, np.float32)})
    except NoCuda as error:
        sys.stdout.write(f"{error}\n")
        return 1
    except Exception as error:  # ONNX Runtime has its own kinds
        sys.stdout.write(f"cuda:{at} does not compute: {said(error)}\n")
        return 1
    if found.tolist() != [2.0]:
        sys.stdout.write(f"1 + 1 is {found[0]:g} there\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
