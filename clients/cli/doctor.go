package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

// The states of what was looked at.
const (
	fine    = "ok"
	warning = "warn"
	failing = "fail"
)

// finding is one thing that was looked at.
type finding struct {
	Check string `json:"check"`
	State string `json:"state"`
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"`
}

// doctor looks at a server from outside, and at its data directory where it is on this machine.
type doctor struct {
	*app
	url, http, data string
	findings        []finding
}

func (d *doctor) ok(check, what string, args ...any) {
	d.findings = append(d.findings, finding{check, fine, fmt.Sprintf(what, args...), ""})
}

func (d *doctor) warn(check, fix, what string, args ...any) {
	d.findings = append(d.findings, finding{check, warning, fmt.Sprintf(what, args...), fix})
}

func (d *doctor) fail(check, fix, what string, args ...any) {
	d.findings = append(d.findings, finding{check, failing, fmt.Sprintf(what, args...), fix})
}

// doctorPatience bounds each question.
const doctorPatience = 3 * time.Second

// dataDefault is where a server that is told nothing keeps its data.
const dataDefault = "trunkline-data"

func (a *app) doctorCommand() *cobra.Command {
	d := &doctor{app: a}
	cmd := &cobra.Command{
		Use:   "doctor [--http HOST:PORT] [--data DIR]",
		Short: "Say what is wrong with a server, and what to do",
		Long: "Look at a server: whether it is reached, which version it is, whether it says that it is healthy, the state\n" +
			"of its plugins and topics; and, on the server's own machine, at its data directory: the disk's room, who may\n" +
			"write, how many files the server may open. Exit code 0: all is well, perhaps with warnings; 10: something is\n" +
			"wrong.",
		Args: argCount(0, 0), DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&d.http, "http", "", "where the server answers HTTP; default is what the server says; - does not ask")
	cmd.Flags().StringVar(&d.data, "data", "", "the server's data `DIR`, on this machine; default is ./trunkline-data where it exists")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if d.url, err = a.server.url(a.env); err != nil {
			return err
		}
		if err = checkURL(d.url); err != nil {
			return &usageError{err}
		}
		a.started = true
		d.examine(cmd.Context())
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		return d.report()
	}
	return cmd
}

func (d *doctor) examine(ctx context.Context) {
	c := d.connect(ctx)
	if c == nil {
		d.directory(nil)
		return
	}
	defer c.Close()
	d.versions(c)
	if at := d.httpOf(c); at != "" {
		d.health(ctx, at)
	}
	d.plugins(ctx, c)
	d.topics(ctx, c)
	info := c.Info()
	d.directory(&info)
}

func (d *doctor) connect(ctx context.Context) *trunkline.Client {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	c, err := trunkline.Dial(ctx, d.url, trunkline.WithName("trunkline-cli"))
	switch {
	case err == nil:
		d.ok("connection", "%s answers as a Trunkline server", c.Address())
		return c
	case errors.Is(err, trunkline.ErrProtocol):
		d.fail("connection", "name the port of a Trunkline server with -s; its ready line says which it is", "%v", err)
	case errors.Is(err, trunkline.ErrConnect):
		d.fail("connection", "start the server, look whether it listens there and no firewall is between, or name another with -s", "%v", err)
	default:
		d.fail("connection", "the server says why it refuses", "%v", err)
	}
	return nil
}

func (d *doctor) versions(c *trunkline.Client) {
	info := c.Info().Trunkline
	switch {
	case info.Protocol != trunkline.ProtocolVersion:
		d.warn("version", "use the client that came with the server: what is new in it this one does not know",
			"the server speaks protocol %d, this client %d", info.Protocol, trunkline.ProtocolVersion)
	default:
		d.ok("version", "server %s, client %s, protocol %d", info.Version, version, info.Protocol)
	}
}

// sayHTTP is what to do where the server's HTTP address is not known here.
const sayHTTP = "say with --http where the server answers HTTP, as its ready line does, or --http - where it does not"

// httpOf is where the server answers HTTP, seen from here; empty where it cannot be asked, which is said unless it was meant.
func (d *doctor) httpOf(c *trunkline.Client) string {
	if d.http == "-" {
		return ""
	}
	if d.http != "" {
		return d.http
	}
	info := c.Info()
	host, port, err := net.SplitHostPort(info.Trunkline.HTTP)
	if err != nil {
		d.warn("health", sayHTTP, "not checked: the server names no address for HTTP")
		return ""
	}
	ip, here := net.ParseIP(host), net.ParseIP(info.ClientIP)
	switch {
	case ip.IsUnspecified():
		host, _, _ = net.SplitHostPort(c.Address()) // the client has connected to it
	case ip.IsLoopback() && !here.IsLoopback() && info.ClientIP != info.Host:
		d.warn("health", "run doctor on the server's machine, or "+sayHTTP, "not checked: the server answers HTTP to its own machine only, at %s", info.Trunkline.HTTP)
		return ""
	}
	return net.JoinHostPort(host, port)
}

func (d *doctor) health(ctx context.Context, at string) {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/readyz", nil)
	if err != nil {
		d.fail("health", "write --http HOST:PORT", "%v", err)
		return
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		d.warn("health", sayHTTP, "no answer over HTTP: %v", err)
		return
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10)) // what came is shown
	if answer.StatusCode != http.StatusOK {
		d.fail("health", "the server's log says more; plugins are restarted by themselves", "/readyz says %d: %s", answer.StatusCode, strings.TrimSpace(string(text)))
		return
	}
	d.ok("health", "http://%s/readyz says it serves", at)
}

func (d *doctor) plugins(ctx context.Context, c *trunkline.Client) {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	plugins, err := c.Plugins(ctx)
	if err != nil {
		d.warn("plugins", "use a newer server", "the server does not tell of its plugins: %v", err)
		return
	}
	ready := 0
	for _, p := range plugins {
		name, why := p.Kind+"/"+p.Name, ""
		if p.LastError != "" {
			why = "; the last error: " + p.LastError
		}
		if p.LastErrorAt != "" {
			why += " (at " + p.LastErrorAt + ")"
		}
		switch {
		case p.State == "ready" && p.Restarts > 0:
			ready++
			d.warn("plugins", "the server's log says when and why; trunkline plugin info "+name, "%s is ready, restarts: %d%s", name, p.Restarts, why)
		case p.State == "ready":
			ready++
		case p.State == "stopped" && p.LastError == "": // nothing has needed it yet
		default:
			d.fail("plugins", "the server's log says more; trunkline plugin reload "+name+" tries again", "%s is %s%s", name, p.State, why)
		}
	}
	d.ok("plugins", "%d of %d are running", ready, len(plugins))
}

// topicsExamined bounds how many topics are looked at one by one.
const topicsExamined = 1000

func (d *doctor) topics(ctx context.Context, c *trunkline.Client) {
	ctx, cancel := context.WithTimeout(ctx, 10*doctorPatience)
	defer cancel()
	topics, err := c.Topics(ctx)
	if err != nil {
		d.fail("topics", "try again; if it stays, the server's log says more", "%v", err)
		return
	}
	partitions := 0
	for i, t := range topics {
		if i == topicsExamined {
			d.warn("topics", "trunkline topic info NAME looks at one", "only the first %d of %d topics were looked at", i, len(topics))
			break
		}
		whole, err := c.TopicInfo(ctx, t.Name)
		if errors.Is(err, trunkline.ErrNotFound) { // deleted meanwhile
			continue
		}
		if err != nil {
			d.fail("topics", "try again; if it stays, the server's log says more", "%v", err)
			return
		}
		for _, p := range whole.Partitions {
			if partitions++; p.Log == nil {
				d.fail("topics", "trunkline errors "+string(p.Error)+"; the server's log names the reason", "%s/%d is not served: %s", t.Name, p.Partition, p.Error)
			}
		}
	}
	d.ok("topics", "%d with %d partitions", len(topics), partitions)
}

// directory looks at the data directory of a server on this machine: of the one that info is of, or, without it, of any.
func (d *doctor) directory(info *trunkline.ServerInfo) {
	path := d.data
	if path == "" {
		if _, err := os.Stat(dataDefault); err != nil {
			return // the server may be anywhere
		}
		path = dataDefault
	}
	properties, err := os.ReadFile(filepath.Join(path, "meta.properties"))
	if err != nil {
		what := fmt.Sprintf("%s cannot be read: %v", path, err)
		if errors.Is(err, fs.ErrNotExist) {
			what = path + " is no data directory: it has no meta.properties"
		}
		d.fail("data", "name the server's data directory with --data; its ready line says which it is", "%s", what)
		return
	}
	if info != nil && !belongs(string(properties), info) {
		const fix = "name this server's data directory with --data, on its machine"
		if d.data == "" {
			d.warn("data", fix, "not checked: ./%s is another server's", path)
		} else {
			d.fail("data", fix, "%s is another server's", path)
		}
		return
	}
	d.room(path)
	d.holder(path)
}

// belongs reports whether a data directory with these properties may be the server's.
func belongs(properties string, info *trunkline.ServerInfo) bool {
	for row := range strings.Lines(properties) {
		key, value, _ := strings.Cut(strings.TrimSpace(row), "=")
		if key == "cluster.id" && value != info.Trunkline.Cluster || key == "broker.id" && value != string(info.Trunkline.Broker) {
			return false
		}
	}
	return true
}

// Below these parts of a disk there is little room, and below so many bytes a group of records may not fit.
const (
	roomLow    = 20 // a twentieth
	roomLowest = 100
	groupBytes = 1 << 20
)

func (d *doctor) room(path string) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		d.fail("disk", "look at the mount", "%s: %v", path, err)
		return
	}
	free, all := s.Bavail*uint64(s.Bsize), s.Blocks*uint64(s.Bsize)
	what := fmt.Sprintf("%s of %s are free for %s", humanize.IBytes(free), humanize.IBytes(all), path)
	switch {
	case free < max(all/roomLowest, groupBytes) || s.Ffree == 0 && s.Files > 0:
		d.fail("disk", "free or add space, or lower retention; publishing stops at the reserve and goes on by itself", "%s", what)
	case free < all/roomLow:
		d.warn("disk", "free or add space, or lower retention, before publishing stops", "%s", what)
	default:
		d.ok("disk", "%s", what)
	}
}

// filesLow is how many files a server should be able to open; a client and a segment cost one each.
const filesLow = 4096

// holder looks at the process that has the directory.
func (d *doctor) holder(path string) {
	text, err := os.ReadFile(filepath.Join(path, "LOCK"))
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || convErr != nil || syscall.Kill(pid, 0) == syscall.ESRCH {
		d.warn("process", "start the server, or name the directory of the one that runs", "no server has %s now", path)
		return
	}
	limit, err := openFiles(pid)
	switch {
	case err != nil:
		d.warn("process", "run doctor as the server's user or as root", "pid %d has %s; its limits cannot be read: %v", pid, path, err)
	case limit < filesLow:
		d.warn("process", "raise it: ulimit -n, or LimitNOFILE= of its systemd unit", "pid %d may open only %d files", pid, limit)
	default:
		d.ok("process", "pid %d has %s and may open %d files", pid, path, limit)
	}
}

// openFiles is how many files a process may have open.
func openFiles(pid int) (uint64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "Max open files"); ok && len(strings.Fields(rest)) > 0 {
			return strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, errors.Join(errors.New("no line on open files"), lines.Err())
}

// report prints what was found; errUnhealthy where something is wrong.
func (d *doctor) report() error {
	sick := false
	for _, f := range d.findings {
		sick = sick || f.State == failing
	}
	var end error
	if sick {
		end = errUnhealthy
	}
	if d.json {
		return errors.Join(end, d.printJSON(map[string]any{"healthy": !sick, "findings": d.findings}))
	}
	colours := map[string]string{fine: green, warning: yellow, failing: red}
	for _, f := range d.findings {
		fmt.Fprintf(d.out, "%s  %-10s  %s\n", d.paint(d.streams.out, colours[f.State], fmt.Sprintf("%-4s", f.State)), f.Check, f.What)
		if f.Fix != "" {
			fmt.Fprintf(d.out, "%18s%s\n", "", "→ "+f.Fix)
		}
	}
	return end
}
