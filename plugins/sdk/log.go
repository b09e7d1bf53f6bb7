package sdk

import (
	"errors"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// Logger returns a logger whose lines the host understands and writes into its own log, at most some dozens a second.
func Logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(rawStderr{}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Fatal logs err and ends the process. What is logged last is what the operator reads when a plugin does not start.
func Fatal(err error) {
	Logger().Error("plugin ends", "err", err)
	os.Exit(1)
}

// rawStderr is the process's own standard error. os.Stderr leads elsewhere once the plugin is served, and an os.File
// over descriptor 2 would close it some day.
type rawStderr struct{}

func (rawStderr) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(2, p[done:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}
