package repo

import (
	"fmt"
	"strings"

	"github.com/snapctl/snapctl/chunk"
)

// PackName is the name of the object that is a pack.
func PackName(id chunk.PackID) string {
	s := id.String()
	return "packs/" + s[:2] + "/" + s
}

// ProfilePrefix is what names of access profiles and bundles begin with.
const ProfilePrefix = "hot/"

// ParsePackName is the inverse of PackName.
func ParsePackName(name string) (chunk.PackID, error) {
	id, err := chunk.ParsePackID(name[strings.LastIndexByte(name, '/')+1:])
	if err != nil || PackName(id) != name {
		return id, fmt.Errorf("%q is not the name of a pack", name)
	}
	return id, nil
}
