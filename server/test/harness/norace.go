//go:build !race

package harness

// raceDetector says that the tests run under the race detector: then the binaries they start do too.
const raceDetector = false
