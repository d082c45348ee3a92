"""What a GPU says about this checkout, in under eight minutes: `python -m benchmarks.gpu_check --out DIR`.

`run` starts a worker and watches it: every stage has a time limit, and a stage that fails or hangs does not cost the
others. The stages come cheapest first. They print one table and write one JSON file.
"""
