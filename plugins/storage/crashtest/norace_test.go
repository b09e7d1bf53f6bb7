//go:build !race

package crashtest

// raceDetector says that the tests run under the race detector.
const raceDetector = false
