"""The mathematics of rectified flow and of Direct-Align, on plain float32 tensors; it knows no model and no device."""
