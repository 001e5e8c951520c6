"""Data preparation: rows in, rows out.

Importing this package, and so importing `recipes`, switches off every library's telemetry: the one place that does.
Some libraries read these variables only once, so ours are imported before any of them (`section-order` in
pyproject.toml keeps it so). An explicit setting of the user's wins.
"""

import logging
import os
import sys
import warnings

for _name, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets, and TRL's ping at trainer start
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets, which counts each load of a local file, too
    "DO_NOT_TRACK": "1",  # vllm, gradio and others that follow the convention
    "VLLM_NO_USAGE_STATS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",  # trackio's dashboard
    "TOKENIZERS_PARALLELISM": "false",  # not telemetry: silences the warning about forks after threads
}.items():
    os.environ.setdefault(_name, _value)
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # of all libraries: a bar in a log is a line for every step of it

# bitsandbytes asks for a CPU kernel from the Hub as it is imported, and complains each time that it gets none.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Seven times at each import of TRL 1.16; `make engines` runs it with vLLM 0.32.
warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
