package rest

import (
	"fmt"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

type machineList struct {
	Machines   []lpmos.Machine            `json:"machines"`
	Total      int                        `json:"total"`
	Counts     map[lpmos.MachineState]int `json:"counts"`
	NextCursor string                     `json:"next_cursor,omitempty"`
	Rev        int64                      `json:"rev"`
}

func (a *API) listMachines(c *gin.Context) {
	q := api.MachineQuery{Text: c.Query("q"), RegionID: c.Query("region_id"), State: lpmos.MachineState(c.Query("state")), Cursor: c.Query("cursor")}
	var err error
	if q.Limit, err = intQuery(c, "limit", 1, maxLimit); err != nil {
		a.fail(c, err)
		return
	}
	switch {
	case q.RegionID != "" && !lpmos.ValidRegionID(q.RegionID):
		err = &lpmos.InvalidError{Field: "region_id", Problem: "is not a region id", Value: q.RegionID}
	case q.State != "" && !q.State.Valid():
		err = &lpmos.InvalidError{Field: "state", Problem: "is not a state of a machine", Value: string(q.State)}
	case len(q.Text) > 1024:
		err = &lpmos.InvalidError{Field: "q", Problem: "is longer than 1 KiB"}
	case q.Cursor != "":
		if _, err = lpmos.ParseMAC(q.Cursor); err != nil {
			err = &lpmos.InvalidError{Field: "cursor", Problem: "is not the next_cursor of a page", Value: q.Cursor}
		}
	}
	if err != nil {
		a.fail(c, err)
		return
	}
	page := a.read.Machines(q)
	c.JSON(http.StatusOK, machineList{list(page.Machines), page.Total, page.Counts, page.NextCursor, page.Rev})
}

func (a *API) getMachine(c *gin.Context) {
	mac, err := lpmos.ParseMAC(c.Param("mac"))
	if err != nil {
		a.fail(c, err)
		return
	}
	m, ok := a.read.Machine(mac)
	if !ok {
		a.fail(c, fmt.Errorf("machine %s: %w", mac, lpmos.ErrNotFound))
		return
	}
	c.JSON(http.StatusOK, m)
}
