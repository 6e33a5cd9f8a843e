"""The text of config.pbtxt, to the last character."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import pytest

from stn_infer.activation import Scores
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import UsageError
from stn_infer.serving.config import config_text, quoted
from stn_infer.serving.service import Classes, Service

FLOAT, PIXELS = np.dtype(np.float32), np.dtype(np.uint8)
PICTURE = TensorSpec("pixels", (None, 42, 40, 1), PIXELS)
SCORES = TensorSpec("scores", (None, 10), FLOAT)
ONE = TensorSpec("one", (None,), np.dtype(np.int64))
FOLDER = PurePosixPath("/srv/models/digits")

PYTHON = """\
name: "digits"
backend: "python"
max_batch_size: 32
input {
  name: "pixels"
  data_type: TYPE_UINT8
  dims: [42, 40, 1]
}
output {
  name: "scores"
  data_type: TYPE_FP32
  dims: [10]
  label_filename: "labels.txt"
}
output {
  name: "one"
  data_type: TYPE_INT64
  dims: [1]
  reshape {
    shape: []
  }
}
output {
  name: "prediction"
  data_type: TYPE_INT64
  dims: [3]
}
output {
  name: "label"
  data_type: TYPE_STRING
  dims: [3]
}
output {
  name: "confidence"
  data_type: TYPE_FP32
  dims: [3]
}
version_policy {
  latest {
    num_versions: 1
  }
}
instance_group {
  count: 2
  kind: KIND_CPU
}
dynamic_batching {
  max_queue_delay_microseconds: 500
}
model_warmup {
  name: "batch of 1"
  batch_size: 1
  inputs {
    key: "pixels"
    value {
      data_type: TYPE_UINT8
      dims: [42, 40, 1]
      zero_data: true
    }
  }
}
model_warmup {
  name: "batch of 32"
  batch_size: 32
  inputs {
    key: "pixels"
    value {
      data_type: TYPE_UINT8
      dims: [42, 40, 1]
      zero_data: true
    }
  }
}
parameters {
  key: "threads"
  value {
    string_value: "1"
  }
}
"""

ONNXRUNTIME = """\
name: "digits"
backend: "onnxruntime"
max_batch_size: 64
input {
  name: "image"
  data_type: TYPE_FP16
  dims: [3, -1, -1]
}
output {
  name: "scores"
  data_type: TYPE_FP32
  dims: [10]
}
version_policy {
  latest {
    num_versions: 1
  }
}
instance_group {
  count: 1
  kind: KIND_GPU
}
model_operations {
  op_library_filename: ["/srv/models/digits/libstn_plugins.so"]
}
parameters {
  key: "intra_op_thread_count"
  value {
    string_value: "0"
  }
}
"""

TENSORRT = """\
name: "digits"
backend: "tensorrt"
max_batch_size: 1
input {
  name: "pixels"
  data_type: TYPE_UINT8
  dims: [42, 40, 1]
}
output {
  name: "scores"
  data_type: TYPE_FP32
  dims: [10]
  label_filename: "labels.txt"
}
version_policy {
  latest {
    num_versions: 1
  }
}
instance_group {
  count: 1
  kind: KIND_GPU
}
dynamic_batching {
  preferred_batch_size: [1]
  max_queue_delay_microseconds: 0
}
model_warmup {
  name: "batch of 1"
  batch_size: 1
  inputs {
    key: "pixels"
    value {
      data_type: TYPE_UINT8
      dims: [42, 40, 1]
      zero_data: true
    }
  }
}
"""


def test_the_python_platform() -> None:
    labels = tuple("0123456789")
    service = Service(
        name="digits",
        inputs=(PICTURE,),
        outputs=(SCORES, ONE),
        classes=Classes.of((SCORES, ONE), Scores(), 3, labels),
        labels=labels,
        max_batch=32,
        queue_delay=500,
        instances=2,
        threads=1,
        library="libstn_plugins.so",
    )
    assert config_text(service, FOLDER) == PYTHON


def test_the_onnxruntime_platform_names_the_library_by_its_absolute_path() -> None:
    service = Service(
        name="digits",
        platform="onnxruntime",
        on_gpu=True,
        inputs=(TensorSpec("image", (None, 3, None, None), np.dtype(np.float16)),),
        outputs=(SCORES,),
        joins=False,
        library="libstn_plugins.so",
        warms=False,
    )
    assert config_text(service, FOLDER) == ONNXRUNTIME


def test_the_tensorrt_platform() -> None:
    service = Service(
        name="digits",
        platform="tensorrt",
        on_gpu=True,
        inputs=(PICTURE,),
        outputs=(SCORES,),
        labels=("a", "b"),
        max_batch=1,
        preferred=1,
        library="libstn_plugins.so",
    )
    assert config_text(service, FOLDER) == TENSORRT
    group = "  count: 1\n  kind: KIND_GPU\n"
    assert config_text(replace(service, profiles=3), FOLDER) == TENSORRT.replace(
        group, group + '  profile: ["0", "1", "2"]\n'
    )


def test_added_outputs_avoid_the_names_of_the_models_own() -> None:
    taken = (SCORES, TensorSpec("label", (None, 1), FLOAT), TensorSpec("confidence", (None,), FLOAT))
    taken += (TensorSpec("confidence_", (None,), FLOAT),)
    names = Classes.of(taken, Scores(), 1, ("a",)).names
    assert names == {"prediction": "prediction", "label": "label_", "confidence": "confidence__"}
    assert Classes.of((SCORES,), Scores(), 1, ()).names.keys() == {"prediction", "confidence"}
    assert Classes.of((SCORES,), Scores(), 99, ()).top_k == 10


def test_strings_are_quoted_byte_by_byte() -> None:
    assert quoted('a "b"\\\n') == r'"a \042b\042\134\012"'
    assert quoted("ü") == r'"\303\274"'


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]"])
def test_a_type_that_triton_does_not_have(dtype: str) -> None:
    spec = TensorSpec("odd", (None, 2), np.dtype(dtype))
    with pytest.raises(UsageError, match="Triton has no data type for 'odd'"):
        config_text(Service(name="m", inputs=(spec,), outputs=(SCORES,)), FOLDER)
