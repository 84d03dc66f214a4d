// The text includes it; device.h has what the text uses.
