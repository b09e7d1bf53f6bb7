package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/sdk/plugintest"
)

// installPlugin is trunkline-server plugin install.
func installPlugin(args []string, stdout, stderr io.Writer) int {
	f, ok := parsePlugin("install", args, stderr)
	if !ok {
		return exitUsage
	}
	kind, name := namedBy(f.file)
	f.kind, f.name = cmp.Or(f.kind, kind), cmp.Or(f.name, name)
	why := ""
	switch {
	case f.kind == "" || f.name == "":
		why = f.file + " does not say kind and name; add --kind and --name"
	case !pluginName().MatchString(f.name):
		why = fmt.Sprintf("%q: a plugin's name has 1 to 24 small letters, digits, - and _, and does not begin with one of the latter two", f.name)
	case f.dir == "":
		why = "name the plugin directory with --dir; the server's configuration says it as plugins.dir"
	case f.config != "" && !json.Valid([]byte(f.config)):
		why = "--config is no JSON"
	}
	if why != "" {
		return f.fail(exitUsage, "%s", why)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	done, err := f.install(ctx)
	if errors.Is(err, plugintest.ErrKind) {
		return f.fail(exitUsage, "%v", err)
	}
	if err != nil {
		return f.fail(exitFailed, "%v; nothing was installed", err)
	}
	done.print(stdout, stderr, f.json)
	if !f.json {
		_, _ = fmt.Fprintf(stderr, "%s/%s %s is installed; write these lines into the configuration, then trunkline plugin reload %s/%s\n", f.kind, f.name, done.Version, f.kind, f.name)
	}
	return exitOK
}

// pluginName is what the configuration takes for a name, and what is safe in a file's.
func pluginName() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,23}$`) }

// errUnfit says that a plugin is none, or not the one that was named.
var errUnfit = errors.New("it does not start as this plugin")

// install copies the file into the plugin directory under a name of its own, looks at that copy and starts it, as the
// server would, and gives it its name: what was looked at is what is installed, and the name has the old file or the new.
func (f *pluginFlags) install(ctx context.Context) (done looked, err error) {
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		return done, err
	}
	path := filepath.Join(dir, host.ExecutableName(f.kind, f.name))
	copied, err := copyInto(dir, f.file)
	if err != nil {
		return done, err
	}
	defer func() { _ = os.Remove(copied) }() // it is gone where it got its name
	if done, err = lookAt(copied); err != nil {
		return done, err
	}
	done.Path, done.Kind, done.Name = path, f.kind, f.name
	if done.Version, err = f.tryStart(ctx, copied); err != nil {
		return done, err
	}
	old, err := lookAt(path)
	switch {
	case err == nil && old.SHA256 != done.SHA256:
		done.Replaces = old.SHA256
	case err != nil && !errors.Is(err, host.ErrNoExecutable):
		return done, err // it would take the place of something that no plugin can be
	}
	if err := os.Rename(copied, path); err != nil {
		return done, err
	}
	return done, syncDir(dir)
}

// copyInto makes a durable copy of a file in dir, which only its owner may change.
func copyInto(dir, file string) (path string, err error) {
	from, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = from.Close() }() // only read
	if info, err := from.Stat(); err == nil && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", file)
	}
	to, err := os.CreateTemp(dir, ".install-*")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Chmod(0o755), to.Sync(), to.Close()); err != nil {
		return "", errors.Join(err, os.Remove(to.Name()))
	}
	return to.Name(), nil
}

// tryStart starts the executable as the server will, and returns its version.
func (f *pluginFlags) tryStart(ctx context.Context, path string) (version string, err error) {
	o := plugintest.Options{Kind: f.kind, Name: f.name, File: path, Config: f.configure, Only: true, Started: func(v string) { version = v }}
	results, err := plugintest.Run(ctx, o)
	if err != nil {
		return "", err
	}
	for _, r := range results {
		if len(r.Failures) > 0 {
			return "", fmt.Errorf("%w: %s", errUnfit, strings.Join(r.Failures, "; "))
		}
	}
	return version, nil
}

// syncDir makes what was renamed in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
