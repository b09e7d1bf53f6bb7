package conn

import (
	"fmt"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
)

// pluginJSON is a plugin as LIST and INFO show it (PROTOCOL §6).
type pluginJSON struct {
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	Version     string `json:"version"`
	Protocol    int    `json:"protocol"`
	State       string `json:"state"`
	Since       string `json:"since,omitempty"`
	PID         int    `json:"pid"`
	Restarts    int    `json:"restarts"`
	RSS         int64  `json:"rss"`
	LastError   string `json:"last_error,omitempty"`
	LastErrorAt string `json:"last_error_at,omitempty"`
	SHA256      string `json:"sha256"`
	Shipped     bool   `json:"shipped"`
	Path        string `json:"path,omitempty"`
	Interpreter string `json:"unverified_interpreter,omitempty"`
}

// handlePlugin is PLUGIN LIST, INFO and RELOAD.
func (c *conn) handlePlugin(cmd *line.Command) {
	what := ""
	if len(cmd.Args) > 0 {
		what = strings.ToUpper(string(clip(cmd.Args[0])))
	}
	detail, data, err := "", []byte(nil), (*errcode.Error)(nil)
	switch what {
	case "LIST":
		data, err = c.pluginList(cmd.Args[1:])
	case "INFO":
		data, err = c.pluginInfo(cmd.Args[1:])
	case "RELOAD":
		detail, err = c.pluginReload(cmd.Args[1:])
	default:
		err = errcode.New(errcode.BadArgs, fmt.Sprintf("PLUGIN %q is not known", what), "use "+line.Plugin.Usage())
	}
	c.reply(cmd, detail, data, err)
}

func (c *conn) pluginList(args [][]byte) ([]byte, *errcode.Error) {
	if len(args) != 0 {
		return nil, errcode.New(errcode.BadArgs, "PLUGIN LIST takes no arguments", "use PLUGIN LIST")
	}
	var list struct {
		Plugins []pluginJSON `json:"plugins"`
	}
	for _, p := range c.broker().Plugins() {
		list.Plugins = append(list.Plugins, showPlugin(p))
	}
	return encode(list)
}

func showPlugin(p broker.Plugin) pluginJSON {
	j := pluginJSON{
		Kind: p.Kind, Name: p.Name, Version: p.Version, Protocol: p.Protocol, State: p.State, PID: p.PID, Restarts: p.Restarts,
		RSS: p.RSS, LastError: p.LastError, SHA256: p.SHA256, Shipped: p.Shipped, Path: p.Path, Interpreter: p.Interpreter,
	}
	if !p.Since.IsZero() {
		j.Since = timeText(p.Since.UnixMilli())
	}
	if !p.ErrorAt.IsZero() {
		j.LastErrorAt = timeText(p.ErrorAt.UnixMilli())
	}
	return j
}

// pluginNamed reads <kind>/<name>.
func pluginNamed(verb string, args [][]byte) (kind, name string, _ *errcode.Error) {
	if len(args) == 1 {
		if kind, name, ok := strings.Cut(string(args[0]), "/"); ok && kind != "" && name != "" {
			return strings.ToLower(kind), name, nil
		}
	}
	return "", "", errcode.New(errcode.BadArgs, fmt.Sprintf("PLUGIN %s names no plugin", verb), fmt.Sprintf("use PLUGIN %s <kind>/<name>, as in PLUGIN %s partitioner/murmur2", verb, verb))
}

func (c *conn) pluginInfo(args [][]byte) ([]byte, *errcode.Error) {
	kind, name, err := pluginNamed("INFO", args)
	if err != nil {
		return nil, err
	}
	p, err := c.broker().Plugin(kind, name)
	if err != nil {
		return nil, err
	}
	return encode(showPlugin(p))
}

// pluginReload answers when the new process is ready.
func (c *conn) pluginReload(args [][]byte) (string, *errcode.Error) {
	kind, name, err := pluginNamed("RELOAD", args)
	if err != nil {
		return "", err
	}
	if err := c.broker().ReloadPlugin(c.ctx, kind, name); err != nil {
		return "", err
	}
	return kind + "/" + name, nil
}
