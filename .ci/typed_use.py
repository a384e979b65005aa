"""A user's program: mypy --strict must take it, and must ask for both of its ignores."""

from alpharl_hub.api import Run, extract, open_trajectory, predict, push, records, report

run: Run = open_trajectory("org/run", base="org/base", until="40%")
steps = [row["step"] for row in records(report(run, quick=True))]
extract(run, "factors", rank="one")  # type: ignore[arg-type]
prediction = predict(run, "predicted", target_step=500)
print(steps, prediction.nothing_of_this_name)  # type: ignore[attr-defined]
push("predicted", "me/run-step-500", private=True)
