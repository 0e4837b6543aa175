package packages

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// DNF notes for whose sake a package is there: version 4, and microdnf, in a database of SQLite (libdnf,
// libdnf/swdb/sql/create_tables.sql), version 5 in a file (dnf5, libdnf5/system/state.cpp).
const (
	dnfHistory = "/var/lib/dnf/history.sqlite"
	dnf5State  = "/usr/lib/sysimage/libdnf5/packages.toml"
)

// dnfUser is the reason USER of libdnf's TransactionItemReason.
const dnfUser = 2

// installers are package managers, which images are built with and which do not run in an enclave: nobody has asked
// for them for their own sake.
var installers = []string{"dnf", "dnf5", "microdnf", "yum", "rpm"}

// readDNF notes which packages a database of DNF 4 says that somebody has asked for. It is read by the child.
func readDNF(file string, list []*Package) error {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := sql.Open("sqlite", file)
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.Query("SELECT rpm.name, trans_item.reason FROM trans_item JOIN rpm ON rpm.item_id = " +
		"trans_item.item_id ORDER BY trans_item.id")
	if err != nil {
		return fmt.Errorf("the history of DNF: %w", err)
	}
	defer rows.Close()
	asked := map[string]bool{} // by the last transaction that was about the package
	for rows.Next() {
		var name string
		var reason int
		if err := rows.Scan(&name, &reason); err != nil {
			return fmt.Errorf("the history of DNF: %w", err)
		}
		asked[name] = reason == dnfUser
	}
	markAsked(list, asked)
	return rows.Err()
}

// readDNF5 does the same with the file of DNF 5.
func readDNF5(tree *rootfs.Tree, list []*Package) error {
	text, err := content(tree, dnf5State)
	if err != nil || len(text) == 0 {
		return err
	}
	var state struct {
		Packages map[string]struct {
			Reason string `toml:"reason"`
		} `toml:"packages"` // by name and architecture
	}
	if err := toml.Unmarshal(text, &state); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, dnf5State, err)
	}
	asked := map[string]bool{}
	for key, p := range state.Packages {
		name := key[:max(0, strings.LastIndexByte(key, '.'))]
		asked[name] = asked[name] || p.Reason == "User"
	}
	markAsked(list, asked)
	return nil
}

func markAsked(list []*Package, asked map[string]bool) {
	for _, p := range list {
		if asked[p.Name] && !slices.Contains(installers, p.Name) {
			p.Asked = true
		}
	}
}
