"""NIfTI files: their headers, their faults, their voxels."""
