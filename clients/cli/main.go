// Command trunkline is the command line client: it publishes and reads records and looks after topics. What it prints on
// standard output is data, byte for byte; everything else goes to standard error.
//
// It uses clients/go alone and knows nothing of servers and plugins. Exit codes: 0 done, 1 failed, 2 usage, 3 no
// connection within five seconds, 4 not allowed, 5 not found, 130 interrupted.
package main

import (
	"context"
	"os"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	code := run(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv})
	stop()
	os.Exit(code)
}
