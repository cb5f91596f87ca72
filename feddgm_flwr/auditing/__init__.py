"""What a finished run tells of the images that its clients trained on (``feddgm-audit``)."""
