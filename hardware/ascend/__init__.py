"""Huawei Ascend: torch_npu. Untested on hardware."""
