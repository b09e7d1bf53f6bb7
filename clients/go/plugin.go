package trunkline

import (
	"context"
	"fmt"
)

// Plugin is what the server tells of a plugin, in the protocol's JSON.
type Plugin struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Version  string `json:"version"`
	Protocol int    `json:"protocol"` // of the plugin protocol; 0 before the first start
	// State is starting, ready, restarting or stopped; Since says from when, in RFC 3339.
	State    string `json:"state"`
	Since    string `json:"since,omitempty"`
	PID      int    `json:"pid"`
	Restarts int    `json:"restarts"`
	RSS      int64  `json:"rss"` // bytes
	// LastError is why the last process ended or did not start; it stays after a good restart.
	LastError string `json:"last_error,omitempty"`
	SHA256    string `json:"sha256"`
	// Shipped is true for a plugin that lives in the server's binary.
	Shipped bool   `json:"shipped"`
	Path    string `json:"path,omitempty"`
	// Interpreter is the program that runs a script; the server has checked the script, and not that program.
	Interpreter string `json:"unverified_interpreter,omitempty"`
}

// Plugins lists the server's plugins, those that nothing has needed yet among them.
func (c *Client) Plugins(ctx context.Context) ([]Plugin, error) {
	var list struct {
		Plugins []Plugin `json:"plugins"`
	}
	if err := c.callJSON(ctx, "PLUGIN LIST", &list); err != nil {
		return nil, fmt.Errorf("list plugins: %w", err)
	}
	return list.Plugins, nil
}

// PluginInfo tells of one plugin, named by kind and name, as in partitioner/murmur2. ErrNotFound where there is none.
func (c *Client) PluginInfo(ctx context.Context, plugin string) (*Plugin, error) {
	if err := checkField("plugin name", plugin); err != nil {
		return nil, err
	}
	p := new(Plugin)
	if err := c.callJSON(ctx, "PLUGIN INFO "+plugin, p); err != nil {
		return nil, fmt.Errorf("plugin %s: %w", plugin, err)
	}
	return p, nil
}

// ReloadPlugin replaces a plugin's process by a new one, which is ready when it returns nil. The server reads its
// configuration of plugins again before. ErrNotFound where there is no such plugin.
func (c *Client) ReloadPlugin(ctx context.Context, plugin string) error {
	if err := checkField("plugin name", plugin); err != nil {
		return err
	}
	if _, _, err := c.ask(ctx, "PLUGIN RELOAD "+plugin); err != nil {
		return fmt.Errorf("reload plugin %s: %w", plugin, err)
	}
	return nil
}
