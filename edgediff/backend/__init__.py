import os

# Since 1.29 onnxruntime reports models and devices to its maker unless this is set before it is
# imported. edgediff turns that off by default; an app may set the variable otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
