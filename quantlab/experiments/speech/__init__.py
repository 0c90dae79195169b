"""Speech that is enhanced: files, scores, pictures, and integer arithmetic."""
