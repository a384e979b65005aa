"""A small Hugging Face Hub on the loopback interface, for the demo and the tests.

Standard library only. The real `huggingface_hub` client, the `hf` command and transformers work
against it unchanged when HF_ENDPOINT names it. It has two origins: the Hub itself, and a storage
origin that large files are read from and written to by signed addresses.
"""

from alpharl_hub.local_hub.environment import child_environment
from alpharl_hub.local_hub.faults import Fault
from alpharl_hub.local_hub.request_log import RequestRecord
from alpharl_hub.local_hub.server import LocalHub

__all__ = ["Fault", "LocalHub", "RequestRecord", "child_environment"]
