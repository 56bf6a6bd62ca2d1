"""SRPO Studio's library: Direct-Align and SRPO for flow-matching image models. It knows nothing of any interface."""

import logging

# diffusers' FLUX pipelines name two image processors of transformers that only IP adapters use, and transformers then
# advises to install torchvision. Nothing here wants it.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)
