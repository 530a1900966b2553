"""Lists of devices and subscribers, from a publisher's file to the memory of the answering process."""
