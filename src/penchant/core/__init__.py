"""What every room uses: errors, findings, evaluations, the screen, the machine."""
