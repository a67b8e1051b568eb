"""What measures a job on a device. None of them needs torch, and all measure in the same way."""
