/**
 * What makes the pages live. Every page is complete without it.
 */
import { live } from './live.js'
import { localTimes } from './format.js'
import './time-zone.js'
import './elapsed-time.js'
import './copy-text.js'
import './live-badge.js'
import './status-count.js'
import './region-status.js'
import './task-status.js'
import './task-run.js'
import './task-figure.js'
import './speed-trend.js'
import './task-progress.js'
import './task-log.js'
import './task-table.js'
import './recent-events.js'
import './page-changed.js'
import './keys.js'
import './worker.js'

localTimes(document)
live.start()
