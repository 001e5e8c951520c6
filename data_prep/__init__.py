"""Data preparation: rows in, rows out.

Importing this package (`recipes` imports it) switches off the telemetry of every library. This is the only place that
does so. Some libraries read these variables only once, so this package is imported before any of them; `section-order`
in pyproject.toml enforces that order. A variable that the user has set is left as it is.
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
    os.environ.setdefault("TQDM_DISABLE", "1")  # in a log file, each update of a bar is a line

# At import, bitsandbytes requests a CPU kernel from the Hub and logs a warning each time that it gets none.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# TRL 1.16 shows this warning seven times at each import. `make engines` tests TRL with vLLM 0.32.
warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
