"""The fine-tuning methods, one file each. They reach the harness through entry points, as any plug-in does."""
