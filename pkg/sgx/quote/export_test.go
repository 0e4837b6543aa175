package quote

// ParseExtension is for the fuzzer.
var ParseExtension = parseExtension
