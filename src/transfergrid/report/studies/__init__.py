"""What the published studies did and printed."""
