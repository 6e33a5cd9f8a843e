"""fp16, bf16 and int8 files from a verified float32 one, and what that costs in pixels and outputs."""
