// Command trunkline is the command line client: it publishes and reads records, looks after topics, and measures. What it
// prints on standard output is data, byte for byte; everything else goes to standard error.
//
// It uses clients/go alone and knows nothing of servers and plugins. Exit codes: 0 done, 1 failed, 2 usage, 3 no
// connection within five seconds, 4 not allowed, 5 not found, 10 unhealthy, 130 interrupted, 141 standard output was
// closed by who read it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	// Asked for, a closed pipe is an error of the write and not the end of the process, so that what was acknowledged can
	// still be told. Ignoring the signal would be inherited by programs that are started.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	code := run(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv})
	stop()
	os.Exit(code)
}
