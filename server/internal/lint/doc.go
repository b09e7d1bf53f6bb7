// Package lint holds the rules of this repository that a machine can check: who may import whom, how large things may
// grow, what must have a comment, and that generated code is fresh. They are tests, run by make lint, over the sources
// as they lie in the tree; nothing imports the package.
//
// A new package needs a row in the table of layers: that row is a design decision. What breaks a limit for a good
// reason stands in the one list of exceptions, with its size, and may only shrink. The package does not look at what
// vet and staticcheck find.
package lint
