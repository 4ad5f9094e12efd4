"""What every room needs: errors, flags, devices, processes, files and random numbers."""
