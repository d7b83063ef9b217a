"""What the student learns from the teacher."""
