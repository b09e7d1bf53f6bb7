// Package failpoint lets a test end a process at a step that has a name. A step is a call of Hit between two things that
// must not both be needed; in what is shipped it is an empty function and costs nothing.
//
// In a binary that is built with the tag failpoint, the environment variable of the name Env names a file with one line,
// "<step> <n> <victim>". The n-th time that step is reached, in whatever process, the victim gets SIGKILL: "self" is
// the process that reached it, "other" the one on the other side of the lease. The file then says "fired". Without that
// line, or without the file, nothing happens. Steps whose names begin with "plugin." are a plugin's, all others the core's.
//
// A plugin's environment is not its parent's, so it looks the variable up there. The package keeps nothing in memory: what
// is counted stands in the file, and outlives the processes.
package failpoint

// Env is the environment variable that names the file.
const Env = "TRUNKLINE_FAILPOINT"
