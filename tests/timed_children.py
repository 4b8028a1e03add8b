"""What llama.cpp computes while it is timed, told from its process."""

from bench.inference import llama_cpp


def replay(line, task, complaints):
    """Tell the logits of each step of two passes of a point, and the token ids that they are of."""
    engine = llama_cpp.Library(complaints)
    model = engine.load(task["file"])
    run = llama_cpp.TimedFile(engine, model, task["point"], task["steps"], 1)
    work, V, point = run.workload, engine.vocabulary(model), task["point"]
    places = range(point.batch) if point.kind == "decode" else range(point.tokens - 1, 10**6, point.tokens)
    passes = []
    for _ in range(2):
        work.reset()
        for _ in range(work.steps):
            work.step()
            at = [engine.c.llama_get_logits_ith(run.context, place) for place in places[: point.batch]]
            passes.append([list(engine.ffi.unpack(row, V)) for row in at])
    line.send({"steps": passes, "ids": run.ids})
