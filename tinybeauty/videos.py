VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"}
def is_video(path): return path.suffix.lower() in VIDEO_SUFFIXES
