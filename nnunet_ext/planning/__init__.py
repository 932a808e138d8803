"""Plans files: the options in them, how a method's plans are derived from others, and sizes of patches."""
