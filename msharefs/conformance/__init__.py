"""What the kernel series answers, case by case, and how to ask a mount the same."""
